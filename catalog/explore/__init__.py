"""``lumid explore``: a local web page to filter a data set, page through thumbnails, and look at slices in 16 bits.

``view`` says what is looked at, and its SQL; ``questions`` asks the catalog; ``images`` makes thumbnails and raw pixels;
``server`` answers the browser. The page itself, plain HTML, CSS and ES modules, is in ``static``.
"""
