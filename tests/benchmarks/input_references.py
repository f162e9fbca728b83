"""Images per second of our input, a bare tf.data chain and a Pillow loader, in turns.

python tests/benchmarks/input_references.py --config configs/imagenet.py
    --config.data.data_dir=DATA
"""

import contextlib
import os

import pillow_loader
from command import make_parser

from vt_flax.cli import startup, tables
from vt_flax.cli.benchmark import check_positive
from vt_flax.data.host import tensorflow
from vt_flax.data.sources import open_configured
from vt_flax.measure.input import BATCH, ours, read_jpegs, run_dataset, take_turns
from vt_flax.training.config import load_config


def bare(files, config, workers):
    """Runs what one writes in a dozen lines: no order, no seeds, no storage."""
    tf = tensorflow()

    def crop(encoded):
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros((1, 0, 4)),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(config.crop_min_area, 1.0),
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.concat([begin[:2], extent[:2]], 0)
        image = tf.io.decode_and_crop_jpeg(encoded, window, 3)
        size = (config.image_size, config.image_size)
        return tf.cast(tf.image.resize(image, size), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices(files).repeat()
    return run_dataset(data.map(crop, num_parallel_calls=workers), workers)


def pillow(files, config, workers):
    batches = pillow_loader.batches(files, config.image_size, BATCH, workers)
    with contextlib.closing(batches):
        for batch in batches:
            yield len(batch)


def main(argv):
    parser = make_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each (5)")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds (5)")
    args, overrides = parser.parse_known_args(argv)
    check_positive(args, "seconds", "rounds")
    config = load_config(args.config, overrides).data
    source = open_configured(config, config.train_split)
    files = read_jpegs(source)
    workers = config.workers or os.cpu_count() or 1
    variants = {
        "ours": lambda: ours(source, config),
        "bare tf.data, from memory": lambda: bare(files, config, workers),
        "Pillow in processes, AutoAugment": lambda: pillow(files, config, workers),
    }
    rows = take_turns(variants, args.rounds, args.seconds)
    tables.print_rows(rows, args.format, f"{source.name}: images per second")


if __name__ == "__main__":
    startup.run(main)
