// All kernels, as they are compiled: with --fmad=false, and without fast math.
#include "activation.cu"
#include "attention.cu"
#include "elementwise.cu"
#include "matmul.cu"
#include "norm.cu"
#include "rope.cu"
#include "softmax.cu"
#include "weighted_sum.cu"
