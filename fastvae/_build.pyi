"""Written by CMake at each build."""

torch_version: str
cuda_architectures: list[str]
