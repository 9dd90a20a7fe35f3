"""Data sets as people have them. `datasets.load_as` reads each as an `Images`.

1. Kinds of data sets: `folders`, `table_images`, `arrays`, `lesions`, `slides`, `shapes`.
2. What they share: `splits`, `unsplit`, `cut`, `classes`, `lookup`, `array_labels`.
3. What a run asks of the images it has loaded: `labels`, `labelled`, `validation`, `leaks`, `identity`.
4. Images with labels or without: to predict, `to_predict`; of which features are written, `every_image`.
5. The recipe in configs/ for a data set: `recipe`.
"""
