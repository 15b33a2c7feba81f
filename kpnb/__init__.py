"""kpnb: knowledge points of a neural network, and what knowledge distillation does to them."""

__version__ = "0.1.0"

from kpnb import distill
from kpnb.energy import ClosedForm
from kpnb.entropy import Entropy, entropies, entropy
from kpnb.features import capture
from kpnb.inputs import embedded
from kpnb.learning import d_mean_var, detour_ratio, learning_distance, weight_distance
from kpnb.lipschitz import Lipschitz, lipschitz
from kpnb.masks import covered_units, read_masks
from kpnb.metrics import Choices, Metrics, six_metrics
from kpnb.objectives import Aligned, Converged
from kpnb.points import KnowledgePoints, foreground_units, knowledge_points, summarise
from kpnb.sampling import Stochastic
from kpnb.stats import compare, compare_seeds
from kpnb.trajectory import Recorder, Trajectory, trajectory
from kpnb.units import ImageGrid, Points, Regions, Tokens
from kpnb.weights import load_weights

__all__ = [
    "Aligned",
    "Choices",
    "ClosedForm",
    "Converged",
    "Entropy",
    "ImageGrid",
    "KnowledgePoints",
    "Lipschitz",
    "Metrics",
    "Points",
    "Recorder",
    "Regions",
    "Stochastic",
    "Tokens",
    "Trajectory",
    "capture",
    "compare",
    "compare_seeds",
    "covered_units",
    "d_mean_var",
    "detour_ratio",
    "distill",
    "embedded",
    "entropies",
    "entropy",
    "foreground_units",
    "knowledge_points",
    "learning_distance",
    "lipschitz",
    "load_weights",
    "read_masks",
    "six_metrics",
    "summarise",
    "trajectory",
    "weight_distance",
]
