"""Devices, compilation, transfers. trm/backends/xla.py is the only module that imports torch_xla."""
