"""Pure tensor mathematics of learning from preferences: tensors and floats in, tensors out.

Every per-token tensor is (B, S) and describes the token at its own index; ``completion_mask`` is
True at completion tokens. Denominators are global and passed in, so that losses and metrics of
microbatches add up to those of the whole batch. Import from the modules of this package.
"""
