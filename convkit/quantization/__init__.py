"""Quantization of graphs: what targets run fast, what data show, which layers are given back."""
