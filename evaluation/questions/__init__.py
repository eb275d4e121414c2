"""The questions of eval_wrn_ebm.py, one file each. Nothing heavy is imported here."""

from evaluation.questions import attack, eval_ece, fid, logp_hist, ood, openood, samples, test_clf

ALL = (
    test_clf.QUESTION,
    eval_ece.QUESTION,
    ood.QUESTION,
    openood.QUESTION,
    logp_hist.QUESTION,
    samples.UNCONDITIONAL,
    samples.CONDITIONAL,
    fid.QUESTION,
    attack.QUESTION,
)
QUESTIONS = {question.name: question for question in ALL}
