"""This folder makes seqio Tasks of our tasks; it is where TensorFlow is imported."""

import tensorflow as tf

# TensorFlow would otherwise take the accelerator's memory from JAX.
tf.config.set_visible_devices([], "GPU")
