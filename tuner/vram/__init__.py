"""Peak memory of a trial on a GPU, predicted without one and without weights. A process of its own: `python -m tuner.vram`.

The real model of transformers, PEFT and bitsandbytes is built on torch's meta device (`build`), a step of the worker's training
runs on it (`steps`), every tensor's storage is followed (`tracker`), what CUDA does differently is put in its place (`cuda`),
and what was allocated and freed is replayed through a simulation of CUDA's caching allocator (`allocator`).
"""
