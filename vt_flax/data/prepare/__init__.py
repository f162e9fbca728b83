"""Makes TFDS datasets in array_record: builds, resizes and converts them."""
