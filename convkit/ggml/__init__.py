"""ggml's block formats, GGUF files, and the libraries that compute with them."""
