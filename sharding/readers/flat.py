"""`flat`: unlabelled images in a folder or archive, at any depth, or a single image file."""

from sharding.readers.image_files import ImageFileReader


class FlatReader(ImageFileReader):
    """Every image is an input; nothing is known of it but what `pattern` finds in its name."""
