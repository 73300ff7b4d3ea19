"""Charts as inline SVG, one file a chart: values in, markup out, with a title and a description for who cannot see."""
