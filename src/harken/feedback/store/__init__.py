"""The feedback store: records and work in one SQLite file or PostgreSQL database."""

from harken.feedback.store.accounts import Accounts, Person, Role
from harken.feedback.store.leases import AnsweredOtherwise, Given, Lease, Leases, WrongLease
from harken.feedback.store.projects import Member, Progress, Project, Projects
from harken.feedback.store.slots import NoTask
from harken.feedback.store.status import ImportSummary, StoreStatus
from harken.feedback.store.store import AddedCounts, FeedbackStore
from harken.feedback.store.tokens import ApiToken, Tokens
from harken.feedback.store.webhooks import Webhook, Webhooks

__all__ = [
    "Accounts",
    "AddedCounts",
    "AnsweredOtherwise",
    "ApiToken",
    "FeedbackStore",
    "Given",
    "ImportSummary",
    "Lease",
    "Leases",
    "Member",
    "NoTask",
    "Person",
    "Progress",
    "Project",
    "Projects",
    "Role",
    "StoreStatus",
    "Tokens",
    "Webhook",
    "Webhooks",
    "WrongLease",
]
