"""The products of benches/cuda.cu in PyTorch, f32 without TF32 and bf16: a line a shape."""

import statistics

import torch

torch.backends.cuda.matmul.allow_tf32 = False


def seconds(run):
    """The median time of `run(i)` on the device, where 20 follow each other; i counts them."""
    each = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for i in range(20):
            run(i)
        end.record()
        torch.cuda.synchronize()
        each.append(start.elapsed_time(end) / 20e3)
    return statistics.median(each[1:])


for dtype in (torch.float32, torch.bfloat16):
    for rows, cols in ((10240, 2560), (2560, 10240), (65536, 2560)):
        copies = max(2, int(300e6 / (rows * cols * dtype.itemsize)))
        w = torch.randn(copies, rows, cols, device="cuda", dtype=dtype)
        x = torch.randn(512, cols, device="cuda", dtype=dtype)
        one = seconds(lambda i: torch.nn.functional.linear(x[:1], w[i % copies]))
        many = seconds(lambda i: torch.nn.functional.linear(x, w[0]))
        read = rows * cols * dtype.itemsize / one / 1e9
        rate = 2 * 512 * rows * cols / many / 1e12
        print(f"{str(dtype)[6:]:10}{rows:6} x {cols:<6} {one * 1e6:7.1f} us {read:5.0f} GB/s   {many * 1e3:7.2f} ms {rate:5.1f} TFLOP/s")
