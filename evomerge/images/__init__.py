"""Image models: several diffusion models of one architecture become one that can be asked for the style of each.

DMM, distillation-based model merging (arXiv 2504.12364): a student learns what every teacher says of noisy images, told
by a learned style vector which teacher is meant (`styles`, `student`, `training`); Fréchet distances say how well
(`measure`). The only room that imports diffusers, which is an extra; see `extra`.
"""
