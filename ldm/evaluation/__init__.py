"""Scores of results: numbers in, numbers out.

fid          Statistics, frechet_distance, kernel_distance
quality      Mixture, quality_score
clip_score   published_crop, clip_region, similarity, copy_paste
background   background_psnr, background_ssim, seam
features     load_clip, load_inception, load_dino, load_lpips, load_oracle
benchmark    evaluate: all of these for a folder of results
"""
