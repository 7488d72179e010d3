"""Weights of Ghost convs, from those of the dense convs that they replace.

From the bottom up: ``channel_statistics`` (second moments of activations), ``pairing`` and
``grouping`` (assignment of ghost channels to one or several primary channels), ``initialization``
(first weights), ``variant_errors`` (their errors for several ratios and group sizes),
``least_squares`` and ``closed_form`` (fit of one conv); ``batches``, ``paired_forward`` and
``microbatch_scheduler`` (original and converted model in one forward pass, within a memory limit);
``sequential`` (fit of all convs), ``joint_assignment`` (one channel permutation for convs whose
outputs a shortcut adds), ``output_gradients`` and ``reconstruction`` (gradient steps for layers and
blocks), ``views``, ``divergence`` and ``network`` (gradient steps for the whole network),
``few_images`` (check of a fit to few images).
"""
