"""What every searcher, cost, importance, repair and pool of workers must keep to, to be checked from any test runner.

Each suite is called with an object, or law by law; what does not hold raises an `AssertionError` that says what:

    import pytest
    from amc.testing import check_searcher

    @pytest.mark.parametrize("law", check_searcher.laws, ids=str)
    def test_my_searcher(law):
        law(MySearcher)

Nothing of ours imports it but tests; it needs no test runner.
"""

from amc.testing.cost import check_cost
from amc.testing.importance import check_importance
from amc.testing.repair import check_repair
from amc.testing.rollouts import check_rollouts
from amc.testing.searcher import check_searcher

__all__ = ["check_cost", "check_importance", "check_repair", "check_rollouts", "check_searcher"]
