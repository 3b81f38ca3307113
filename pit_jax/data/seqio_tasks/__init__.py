"""Our tasks as Tasks of seqio: sources, preprocessors, feature converters. TensorFlow is here."""

import tensorflow as tf

# TensorFlow would otherwise take the accelerator's memory from JAX.
tf.config.set_visible_devices([], "GPU")
