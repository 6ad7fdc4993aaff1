"""What a browser asks of a collection of images and a backbone: search, parts, copies, outliers, a map; without the browser."""
