"""Terms on the pages about evaluations and sweeps; ``docs/report.md`` explains the same terms."""

TERMS = {
    "sweep point": "one setting, such as guidance.scale=3; all use the same prompts and the same initial noise",
    "score": "a number for each song, averaged over prompts",
    "set distance": "a number for all songs of a sweep point together, such as FAD",
    "take": "one of several songs of a prompt, from different noise",
    "n": "number of prompts that a mean is over",
    "ceiling": "score of the reference recordings after encoding and decoding by the autoencoder: the most that a "
    "perfect generator could reach",
    "coded": "of recordings: encoded and decoded by the autoencoder",
    "shuffled": "score of the same songs against other songs' prompts; only the difference from the score shows that "
    "prompts were followed",
    "chance": "expected score of a random answer",
    "reference": "the recordings that set distances compare with",
    "interval": "95 % confidence interval of a mean: BCa bootstrap over prompts",
    "error": "standard error of a set distance, from random halves of the songs",
    "difference": "mean of the differences between two sweep points, prompt by prompt",
    "p": "p-value of a sign-flip permutation test on these differences",
    "Holm": "p-values corrected for the number of comparisons; below 0.05 after correction is called a difference",
    "d_z": "effect size of a paired comparison, mean difference over its standard deviation: 0.2 is small, 0.5 medium, "
    "0.8 large",
    "FAD": "Fréchet distance between Gaussians fitted to embeddings of the songs and of the reference; compare only at "
    "equal numbers of songs",
    "FAD∞": "FAD extrapolated to infinitely many songs",
    "KAD": "squared maximum mean discrepancy between embeddings of the songs and of the reference, times 100; unbiased",
    "coverage": "share of reference windows with a generated window among their neighbours; density: how many",
    "memorisation": "similarity of a song to the nearest training song",
}
