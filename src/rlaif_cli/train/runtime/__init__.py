"""What a training run keeps on disk: checkpoints, best weights, metrics, exports."""
