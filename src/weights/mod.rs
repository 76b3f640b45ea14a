//! Named tensors: safetensors files, parameter stores, names, inheritance, the hub.
