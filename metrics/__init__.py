"""Metrics: one file each, over events (draws), over encodings (probes) or over the model itself (cost)."""

METRIC_VERSION = "2"
"""Raised whenever a change in this package changes a number; scores of two versions share no column."""

METRICS = {
    "coherence": "joint and cross coherence of digits or attributes, diversity, ceiling and judge accuracy",
    "ex_post": "joint samples from a density fitted to encodings after training, scored by the metrics above",
    "latent": "accuracy of linear probes on the latents, per modality and joint (latent_acc)",
    "clustering": "agreement of a method's clusters with the labels, where it has any (cluster_acc, ...)",
    "fid": "Frechet Inception distance, kernel distance, precision and recall (fid_uncond, kid_t2i, ...)",
    "clip": "CLIP score of pictures and captions by OpenAI's ViT-B/32 (clip_uncond, clip_t2i, clip_i2t)",
    "fd_clf": "Frechet distance in the features of the data set's own classifiers (fd_clf_uncond, ...)",
    "swd": "sliced Wasserstein distance of small patches: texture, without a network (swd_uncond, ...)",
    "chains": "Markov chains on held-out data: energy or log-likelihood at both ends, acceptance, mixing",
    "cost": "parameters, overhead, seconds and network evaluations per sample, step time, memory, FLOPs",
}
"""The names that `plan.metrics` may hold, each with one line on what it measures."""

DRAWN = ("coherence", "fd_clf", "fid", "clip", "swd")
"""Those that score samples, the ones of `ex_post` among them."""
