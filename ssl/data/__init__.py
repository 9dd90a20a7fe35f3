"""The way of an image, from its file to a batch of views on the training device.

1. A file becomes pixels: `tiff`, `png`, `decode`, `reduced`.
2. Many images become one object, `Images`: `listing`, `tables`, `stack`, `held`, `images`, `hold_out`, `keys`.
3. Images become batches: `order`, `worker`, `loader`, `bad_images`, `resident`, `preload`, `blocks`, `cores`, `memory`.
4. What a run says about its files at its start: `values`.
5. Commands that make files: `prepare`, and `patches` with `masks`; what both share: `made_folder`.
"""
