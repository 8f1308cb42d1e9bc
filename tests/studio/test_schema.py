"""Whatever is sent to whatever address: an answer, and never an error of ours."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings

from goodheart.feedback import campaigns, membership, people
from goodheart.feedback.campaigns import CampaignSettings
from goodheart.feedback.store import open_store
from goodheart.studio.app import create_app
from tests.studio.conftest import pairs

EXAMPLES = 6  # requests to each address


def test_no_request_breaks_the_studio(tmp_path: Path) -> None:
    store = open_store(tmp_path / "labels.db")
    made = campaigns.create(store, CampaignSettings(name="c", overlap=50), pairs(30), "Guide.")
    app = create_app(store, single_user=True)
    me = people.find_person(store, "me")
    assert me is not None
    membership.join(store, made.id, me.id)
    app.state.invite_limit.most = 10**9
    schema = schemathesis.openapi.from_dict(app.openapi())
    schema.app = app
    seen: Counter[int] = Counter()

    def call(case: Any) -> None:
        if case.path_parameters:  # half of the guesses hit something that is there
            case.path_parameters |= {
                name: 1 for name, value in case.path_parameters.items() if str(value)[-1:] in "02468"
            }
        if isinstance(case.body, dict) and case.media_type == "application/x-www-form-urlencoded":
            case.body["csrf"] = app.state.csrf
        response = case.call(base_url="http://127.0.0.1", headers={"X-CSRF-Token": app.state.csrf})
        seen[response.status_code] += 1
        assert response.status_code < 500, (case.method, case.formatted_path, case.body, response.text)
        assert "default-src 'self'" in response.headers["content-security-policy"][0]

    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 15
    for operation in operations:
        limits = settings(
            max_examples=EXAMPLES,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        limits(given(case=operation.as_strategy())(call))()
    assert {200, 404, 422} <= seen.keys()  # else nothing was reached
    store.close()
