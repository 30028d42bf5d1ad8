"""The least role for every route of the app: the one table that the tests of security and of all pages read."""

from harken.feedback.web.security import API

ROLES = ("annotator", "reviewer", "owner")
WHO = {
    "open": "GET /login, POST /login, GET /join/{token}, POST /join/{token}, GET /api/openapi.json",
    "annotator": """
        GET /, POST /logout, GET /account, POST /account/password, POST /account/log-out-everywhere,
        POST /account/data, POST /account/withdraw, GET /account/content, POST /account/content,
        GET /account/about-you, POST /account/about-you, POST /account/about-you/take-back,
        POST /tasks/{lease_id}/opt-out, GET /consent, POST /consent, GET /projects/{project_id},
        POST /projects/{project_id}/next, GET /projects/{project_id}/answers, GET /tasks/{lease_id},
        POST /tasks/{lease_id}, POST /tasks/{lease_id}/draft, GET /api/v1/me, GET /api/v1/projects,
        GET /api/v1/projects/{project_id}, POST /api/v1/projects/{project_id}/claims,
        GET /api/v1/claims/{claim_id}, POST /api/v1/claims/{claim_id}/heartbeat,
        POST /api/v1/claims/{claim_id}/judgment
        """,
    "reviewer": """
        GET /projects/{project_id}/review, GET /manage/projects/{project_id}/progress.json,
        GET /manage/projects/{project_id}/figures, GET /manage/projects/{project_id}/figures.json,
        GET /api/v1/projects/{project_id}/progress, GET /api/v1/projects/{project_id}/figures,
        GET /api/v1/projects/{project_id}/tasks, GET /api/v1/projects/{project_id}/tasks/{task_id}
        """,
    "owner": """
        GET /manage, POST /manage/projects, GET /manage/projects/{project_id},
        POST /manage/projects/{project_id}/tasks, POST /manage/projects/{project_id}/guideline,
        POST /manage/projects/{project_id}/state, POST /manage/projects/{project_id}/settings,
        POST /manage/projects/{project_id}/members,
        GET /manage/people, POST /manage/people/invite, POST /manage/people/{person_id}, GET /manage/tokens,
        POST /manage/tokens, POST /manage/tokens/{token_id}/revoke, GET /manage/webhooks,
        POST /manage/webhooks, POST /manage/webhooks/{webhook_id}/test,
        POST /manage/webhooks/{webhook_id}/remove, POST /api/v1/projects,
        POST /api/v1/projects/{project_id}/tasks, GET /api/v1/projects/{project_id}/export/{what}
        """,
}
"""The least role that may use a route; `open` is for everybody."""
LEAST = {(line.split()[0], line.split()[1]): who for who, text in WHO.items() for line in text.split(",")}


def pages_for(who: str) -> set[str]:
    """Pages that a role, or `open`, can see beyond those of the roles before it."""
    return {path for (method, path), least in LEAST.items() if least == who and method == "GET" and API not in path}
