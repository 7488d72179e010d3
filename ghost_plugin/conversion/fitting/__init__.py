"""Weights of Ghost convs, from those of the dense convs that they replace.

From the bottom up: ``channel_statistics`` (second moments of activations), ``pairing`` (assignment
of ghost channels to primary channels), ``initialization`` (first weights), ``least_squares`` (fit
of one conv); ``batches``, ``paired_forward`` and ``microbatch_scheduler`` (original and converted
model in one forward pass, within a memory limit); ``sequential`` (fit of all convs),
``joint_assignment`` (one channel permutation for convs whose outputs a shortcut adds),
``output_gradients`` and ``reconstruction`` (gradient steps for layers and blocks), ``few_images``
(check of a fit to few images).
"""
