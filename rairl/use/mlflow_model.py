"""The reward model as MLflow loads it ("models from code"). MLflow executes this file; nothing else imports it."""

from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext

from rairl.core.errors import RairlError
from rairl.use.scoring import Solution, Verdict, judge, to_traces


class RewardScorer(PythonModel):
    """Scores solutions; the type hints are the schema that MLflow checks requests against."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the reward model that was registered."""
        from rairl.models.reward import RewardModel

        self.model = RewardModel.from_pretrained(context.artifacts["reward"])

    def predict(
        self, context: PythonModelContext, model_input: list[Solution], params: dict | None = None
    ) -> list[Verdict]:
        """One verdict, as a dict, per solution."""
        try:
            return [verdict.model_dump() for verdict in judge(self.model, to_traces(model_input))]  # type: ignore[misc]
        except RairlError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


set_model(RewardScorer())
