"""Paint by Example (Yang et al. 2022, arXiv 2211.13227): repaint a marked region with the object of a reference.

data          image, box -> GT, inpaint_image = GT * mask, inpaint_mask (1 = keep), ref_imgs  ldm/data
conditioning  reference -> 1 token (B,1,768);  image + mask -> 5 latent channels              conditioning.py
diffusion     x_t (4) ++ masked latent (4) ++ mask (1) -> eps (4), loss                       denoiser.py, ddpm.py
sampling      eps(x, t) + NoiseSchedule -> x_0                                                sampling.py
evaluation    folder of results -> FID, QS, CLIP score                                        ldm/evaluation
"""

__version__ = "0.2.0"
