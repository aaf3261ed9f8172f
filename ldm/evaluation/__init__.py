"""Scores of a folder of results.

fid          Statistics, frechet_distance, kernel_distance
quality      Mixture, quality_score
clip_score   published_crop, clip_region, similarity, copy_paste
background   background_psnr, background_ssim, seam
features     load_clip, load_inception, load_dino, load_lpips: networks from files of weights
folder       features of all pictures of a folder; statistics of real pictures, kept beside it
metrics      METRICS: key, name and meaning of each
scorers      Scorer: pictures of a case -> values of metrics; the scorers of METRICS
cases        the cases of a benchmark with their results
benchmark    evaluate: a benchmark's results, metrics and scorers -> Summary
summary      Summary: the content of scores.json, and a table of text
page         write_page: a Summary and its pictures as one HTML page
"""
