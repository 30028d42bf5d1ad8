"""People and tasks for tests of the work."""

from dataclasses import dataclass

from harken.config.project import ComparisonTask, ProjectConfig, TaskConfig
from harken.feedback.source import ImportSource
from harken.feedback.store import Accounts, FeedbackStore, Given, Lease, Leases, Person, Project, Projects
from harken.feedback.store.accounts import Role
from harken.feedback.tasks import TaskLine
from harken.records import Comparison

PASSWORD = "correct horse"
SOURCE = ImportSource("tasks", "tasks.jsonl", "0" * 64)


@dataclass(frozen=True)
class Workshop:
    """A store with what the app uses of it."""

    store: FeedbackStore
    accounts: Accounts
    projects: Projects
    leases: Leases

    @classmethod
    def over(cls, store: FeedbackStore) -> "Workshop":
        database = store.database
        return cls(store, Accounts(database), Projects(database), Leases(database))

    def person(self, name: str, role: Role = "annotator") -> Person:
        owners = [one for one in self.accounts.everyone() if one.role == "owner"]
        token = self.accounts.invite(role, owners[0]) if owners else self.accounts.first_invitation()
        return self.accounts.join(token, name, PASSWORD)

    def people(self, *names: str) -> list[Person]:
        """The owner Olga is made first, then annotators of these names."""
        self.person("Olga", "owner")
        return [self.person(name) for name in names]

    def project(self, num_tasks: int = 3, task: TaskConfig | None = None, **config: object) -> Project:
        task = task or ComparisonTask()
        settings = ProjectConfig.model_validate({"task": task.model_dump(), **config})
        project = self.projects.make(f"project {len(self.projects.all())}", settings)
        counts = {"comparison": 2, "ranking": 4, "demonstration": 0}
        self.projects.add_tasks(project.id, lines(num_tasks, counts.get(task.kind, 1)), SOURCE)
        return project


def lines(num_tasks: int, num_completions: int = 2, **fields: object) -> list[TaskLine]:
    return [
        TaskLine.model_validate(
            {
                "prompt": f"Question {number}?",
                "completions": [f"Answer {letter} to {number}." for letter in "abcdefghi"[:num_completions]],
                **fields,
            }
        )
        for number in range(num_tasks)
    ]


def win(lease: Lease, place: int = 0, **fields: object) -> Given:
    """The answer that the completion at this place of the page is clearly better."""
    answer = Comparison(outcome="win", winner=lease.completions[place].id, strength=2)
    return Given(answer, **fields)  # pyright: ignore[reportArgumentType]
