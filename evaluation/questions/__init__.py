"""The questions of eval_wrn_ebm.py, a file each. Nothing heavy is imported here."""

from evaluation.questions import (
    attack,
    cond_samples,
    eval_ece,
    fid,
    logp_hist,
    ood,
    test_clf,
    uncond_samples,
)

FILES = (test_clf, eval_ece, ood, logp_hist, uncond_samples, cond_samples, fid, attack)
QUESTIONS = {file.QUESTION.name: file.QUESTION for file in FILES}
