// All kernels, as they are compiled: with --fmad=false, and without fast math. Each is there for every compute type, which ends its
// name; a product's second type is that of the weights. Where nothing else is said, a thread has one number of a grid of one dimension.
#include "activation.cu"
#include "attention.cu"
#include "elementwise.cu"
#include "heads.cu"
#include "matmul.cu"
#include "norm.cu"
#include "rows.cu"
#include "weighted_sum.cu"
