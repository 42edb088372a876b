"""From cross-validation, which hides a part of the seen classes, to the injection, which learns from all of them.

Rows are predicted better the more classes they are learnt from, so that cross-validation is too pessimistic. How fast
they get better is seen by hiding more: the same held-out classes are predicted from fewer training classes, and play
the same games. Accuracies are then taken to go on linearly in the logarithm of the number of training classes, over a
step that is never longer than the one observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from icis_deploy.injection.pseudo_features.draws import PseudoFeatures
from icis_deploy.injection.validation.cross_validation import HeldOutRows, hold_out, play, with_less_training
from icis_deploy.injection.validation.evaluation import Candidate, Trial, at_competing_length
from icis_deploy.injection.validation.operating_point import Rates, predicted_rates


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearningCurve:
    """Held-out rows of a candidate, predicted from fewer classes than in its trial."""

    candidate: Candidate
    """With the predictions of its trial."""

    thinned: tuple[HeldOutRows, ...]
    """The same folds with less training."""

    step: float
    """From the trial to all seen classes, in units of the step from less training to the trial; 0..1."""

    def rates(self, trial: Trial, pseudo: PseudoFeatures) -> Rates:
        """Return the accuracies to expect when all seen classes are learnt from.

        Args:
            trial: The candidate's trial.
            pseudo: Features to play with, the trial's or others.
        """
        point = self.candidate.point
        now, less = (
            predicted_rates(play(rows, trial.rows, pseudo, seed=trial.seed), point)
            for rows in (self.candidate.held_out, self.thinned)
        )
        return Rates(T=self._go_on(less.T, now.T), U=self._go_on(less.U, now.U), S=self._go_on(less.S, now.S))

    def _go_on(self, less: float, now: float) -> float:
        return min(max(now + self.step * (now - less), 0.0), 1.0)


def learning_curve(candidate: Candidate, trial: Trial) -> LearningCurve:
    """Predict a candidate's held-out rows once more, from fewer classes.

    Args:
        candidate: A method after its trial.
        trial: That trial.
    """
    folds = tuple(part.fold for part in candidate.held_out)
    fewer = with_less_training(folds, seed=trial.seed)
    raw = hold_out(candidate.prepared.predict, trial.descriptors, trial.rows, trial.unseen_descriptors, fewer)
    sizes = [sum(len(fold.training) for fold in group) / len(group) for group in (fewer, folds)]
    step = math.log(len(trial.rows) / sizes[1]) / max(math.log(sizes[1] / sizes[0]), 1e-9)
    return LearningCurve(
        candidate=candidate, thinned=at_competing_length(raw, trial, candidate.exponent), step=min(step, 1.0)
    )
