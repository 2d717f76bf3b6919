"""What a person reads in Prefect's and MLflow's pages of a sweep that runs from the pool."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import mlflow
import pytest
from pages import Pages, browser, renewing
from playwright.sync_api import Locator, Page, expect
from stack import Stack, project_copy, running_stack
from waiting import wait_until

# One trial of this seed starts with a learning rate that teaches it nothing: it is the last, and exploits the others.
SEED, LOWEST_LR, HIGHEST_LR = 541, 3e-5, 3.5e-3
# The docs show a sweep that reaches its target.
ITERATIONS = 40 if renewing() else 16
SWEEP_S = 300.0
CHARTS = ("hp/clip_param", "hp/lambda", "hp/lr", "entropy", "episode_len_mean", "episode_reward_mean")

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("sweep")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    with browser(tmp_path_factory.mktemp("browser")) as pages:
        yield pages


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, pages: Pages) -> Iterator[Stack]:
    """Up only where there is a browser to look at it."""
    folder = tmp_path_factory.mktemp("pages")
    with running_stack(folder, project_copy(folder)) as stack:
        yield stack


@pytest.fixture(scope="module")
def sweep(stack: Stack) -> str:
    """A flow run of `sweep/local`, as soon as it is asked for: it begins while the first tests look at the form."""
    preset, lr = deployment(stack)["parameters"], {"type": "loguniform", "low": LOWEST_LR, "high": HIGHEST_LR}
    parameters = {
        "seed": SEED,
        "max_iterations": ITERATIONS,
        "perturbation_interval": 2,
        "hyperparameters": preset["hyperparameters"] | {"lr": lr},
        "mutations": preset["mutations"] | {"lr": lr},
    }
    done = stack.prefect("deployment", "run", "sweep/local", "--params", json.dumps(parameters))
    assert done.returncode == 0, done.stdout + done.stderr
    [flow_run_id] = re.findall(r"UUID: ([0-9a-f-]{36})", done.stdout)
    return flow_run_id


@pytest.fixture(scope="module")
def finished(stack: Stack, sweep: str) -> dict[str, Any]:
    """The flow run at its end."""
    wait_until(lambda: has_ended(stack, sweep), "the sweep ends", SWEEP_S)
    run = flow_run(stack, sweep)
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    return run


def deployment(stack: Stack) -> dict[str, Any]:
    return stack.request("GET", "/deployments/name/sweep/local")


def flow_run(stack: Stack, flow_run_id: str) -> dict[str, Any]:
    return stack.request("GET", f"/flow_runs/{flow_run_id}")


def has_ended(stack: Stack, flow_run_id: str) -> bool:
    return flow_run(stack, flow_run_id)["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def artifact(stack: Stack, flow_run_id: str, key: str) -> str:
    """Address of the page of a flow run's artifact."""
    query = {"artifacts": {"flow_run_id": {"any_": [flow_run_id]}, "key": {"any_": [key]}}}
    [found] = stack.request("POST", "/artifacts/filter", query)
    return f"{stack.prefect_url}/artifacts/artifact/{found['id']}"


def runs(stack: Stack, flow_run_id: str) -> tuple[str, str, list[str]]:
    """The experiment's id, the parent run's name, and the names of its children in MLflow."""
    client = mlflow.MlflowClient(stack.mlflow_url)
    experiment = client.get_experiment_by_name("pbt_ppo")
    assert experiment is not None
    [sweep_id] = [tag[6:] for tag in flow_run(stack, flow_run_id)["tags"] if tag.startswith("sweep:")]
    found = client.search_runs([experiment.experiment_id])
    of_sweep = {"plato.sweep_id": sweep_id, "plato.kind": "sweep"}
    [parent] = [run for run in found if of_sweep.items() <= run.data.tags.items()]
    children = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return experiment.experiment_id, str(parent.info.run_name), [str(run.info.run_name) for run in children]


def form_field(page: Page, title: str) -> Locator:
    """A setting in the run form: its title, description and input."""
    return page.locator(".schema-form-property").filter(has=page.get_by_text(f"{title} (Optional)", exact=True)).last


def open_form(page: Page) -> None:
    expect(form_field(page, "Population")).to_be_visible()


def lines(chart: Locator) -> set[tuple[str, ...]]:
    """The lines of a chart of MLflow's, as the points they go through; it draws each twice, and runs without points."""
    paths = [path.get_attribute("d") or "" for path in chart.locator(".scatterlayer .js-line").all()]
    found = {tuple(re.findall(r"[ML][^ML]+", path)) for path in paths}
    return {points for points in found if len(points) > 2}


def close_assistant(page: Page) -> None:
    """MLflow opens its assistant by itself, over a third of the window."""
    close = page.locator("[data-component-id='mlflow.assistant.chat_panel.close']")
    expect(close).to_be_visible()
    close.click()
    expect(close).to_be_hidden()


def test_the_run_form_has_each_settings_title_description_and_preset(stack: Stack, pages: Pages) -> None:
    found = deployment(stack)
    with pages.open(f"{stack.prefect_url}/deployments/deployment/{found['id']}/run") as page:
        open_form(page)
        for setting in found["parameter_openapi_schema"]["properties"].values():
            one = form_field(page, setting["title"])
            expect(one).to_contain_text(setting["description"].replace("`", ""))
        shown = {
            title: form_field(page, title).locator("input, textarea").first
            for title in ("Environment", "Population", "Perturbation interval", "Stop at return")
        }
        values = {title: value.input_value() for title, value in shown.items()}
        assert values == {
            "Environment": "CartPole-v1",
            "Population": "4",
            "Perturbation interval": "5",
            "Stop at return": "475",
        }
        expect(form_field(page, "Algorithm")).to_contain_text("PPO")  # a choice, not a text
        pages.take(page, "prefect-run-form")


def test_the_run_form_refuses_a_population_of_none(stack: Stack, pages: Pages) -> None:
    def count() -> int:
        return stack.request("POST", "/flow_runs/count", {"deployments": {"name": {"any_": ["local"]}}})

    before = count()
    with pages.open(f"{stack.prefect_url}/deployments/deployment/{deployment(stack)['id']}/run") as page:
        open_form(page)
        form_field(page, "Population").locator("input").fill("0")
        page.get_by_role("button", name="Submit").click()
        expect(page.get_by_text("0 is less than the minimum of 1").first).to_be_visible()
    assert count() == before


def test_a_running_sweep_tells_its_name_tags_news_and_steps(stack: Stack, pages: Pages, sweep: str) -> None:
    with pages.open(f"{stack.prefect_url}/runs/flow-run/{sweep}", height=1400) as page:
        exploits = page.get_by_text(re.compile(r"^trial \d exploits trial \d at iteration"))
        wait_until(lambda: exploits.count() or has_ended(stack, sweep), "an exploit in the log", SWEEP_S)
        expect(exploits.first).to_be_visible()
        page.reload()  # its timeline then fits what there is to show
        expect(page.get_by_text(re.compile(r"^new best \d+\.\d of 475 \(trial \d, ")).first).to_be_visible()
        expect(page.get_by_text("Running", exact=True).first).to_be_visible()
        run = flow_run(stack, sweep)
        expect(page.get_by_text(run["name"], exact=True).first).to_be_visible()
        assert re.fullmatch(r"pbt_ppo CartPole-v1 x4 #\d+", run["name"])
        assert {"plato", "local", "CartPole-v1", "PPO"} < set(run["tags"])
        for tag in run["tags"]:
            expect(page.get_by_text(tag, exact=True).first).to_be_visible()
        pages.take(page, "prefect-running")
        page.get_by_text("Task Runs", exact=True).click()
        for step in ("open the parent run", "train 4 x PPO on CartPole-v1"):
            expect(page.get_by_text(re.compile(f"^{step}")).first).to_be_visible()
        page.get_by_text("Artifacts", exact=True).click()
        expect(page.get_by_text("pbt-ppo-leaderboard")).to_be_visible()
        expect(page.get_by_text(re.compile(r"^\d+/\d+ iterations, best \d+\.\d of 475"))).to_be_visible()
        assert flow_run(stack, sweep)["state_type"] == "RUNNING"  # all of it while it ran


def test_the_artifacts_page_lists_one_of_each(stack: Stack, pages: Pages, finished: dict[str, Any]) -> None:
    with pages.open(f"{stack.prefect_url}/artifacts") as page:
        for name in ("progress", "leaderboard", "mlflow", "summary"):
            expect(page.get_by_text(f"pbt-ppo-{name}", exact=True)).to_have_count(1)
        pages.take(page, "prefect-artifacts")


def test_the_leaderboard_has_every_trial(stack: Stack, pages: Pages, finished: dict[str, Any]) -> None:
    with pages.open(artifact(stack, finished["id"], "pbt-ppo-leaderboard")) as page:
        expect(page.get_by_role("columnheader")).to_have_text(
            ["trial", "return", "best return", "iteration", "clip_param", "lambda", "lr", "state", "generation"]
        )
        rows = page.get_by_role("row").filter(has=page.get_by_role("cell"))
        expect(rows).to_have_count(4)
        cells = [row.get_by_role("cell").all_inner_texts() for row in rows.all()]
        assert {row[0] for row in cells} == {"0", "1", "2", "3"}
        returns = [float(row[1]) for row in cells]
        assert returns == sorted(returns, reverse=True)
        assert max(int(row[-1]) for row in cells) > 0  # what exploited is of a later generation
        pages.take(page, "prefect-leaderboard")


def test_the_summary_shows_its_learning_curves(stack: Stack, pages: Pages, finished: dict[str, Any]) -> None:
    with pages.open(artifact(stack, finished["id"], "pbt-ppo-summary"), height=1400) as page:
        for heading in ("Leaderboard", "Learning curves", "Load it", "See it"):
            expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible()
        expect(page.get_by_role("row").filter(has_text="checkpoint")).to_contain_text("verified")
        expect(page.locator("pre").filter(has_text=re.compile(r"^/\S+/checkpoint_\d{6}\s*$"))).to_be_visible()
        curves = page.get_by_role("img", name="learning curves")
        expect(curves).to_be_visible()
        assert curves.evaluate("picture => picture.complete && picture.naturalWidth") > 0
        pages.take(page, "prefect-summary", curves)


def test_the_link_to_mlflow_leads_to_the_parent_run(stack: Stack, pages: Pages, finished: dict[str, Any]) -> None:
    _, parent, children = runs(stack, finished["id"])
    with pages.open(artifact(stack, finished["id"], "pbt-ppo-mlflow")) as page:
        with page.expect_popup() as opened:
            page.get_by_role("link", name="the sweep's parent run in MLflow").click()
        page = pages.sized(opened.value)
        expect(page.get_by_role("heading", name=parent)).to_be_visible()
        assert page.url.startswith(stack.mlflow_url)
        expect(page.get_by_role("link", name="Runs", exact=True).first).to_be_visible()  # the menu for training
        close_assistant(page)
        assert len(children) == 4
        for child in children:
            expect(page.get_by_role("link", name=child)).to_be_visible()
        pages.take(page, "mlflow-parent-run")


def test_mlflow_draws_the_returns_of_the_children_under_the_parent(
    stack: Stack, pages: Pages, finished: dict[str, Any]
) -> None:
    experiment, parent, children = runs(stack, finished["id"])
    address = f"{stack.mlflow_url}/#/experiments/{experiment}/runs?workflowType=machine_learning"
    with pages.open(address, height=1000) as page:
        row = page.get_by_role("row").filter(has_text=parent)
        row.locator("[data-component-id$='runnamecellrenderer.tsx_46']").click()  # the plus sign before its name
        for child in children:
            expect(page.get_by_role("row").filter(has_text=child)).to_be_visible()
        page.locator("label").filter(has=page.locator("input[name='runs-view-mode'][value='CHART']")).click()
        page.get_by_placeholder("Search metric charts").fill(f"^({'|'.join(CHARTS)})$")
        charts = page.get_by_test_id("experiment-view-compare-runs-card")
        expect(charts).to_have_count(len(CHARTS))
        returns = charts.filter(has=page.get_by_role("heading", name="episode_reward_mean", exact=True))
        for child in children:
            expect(returns).to_contain_text(f"{child} (episode_reward_mean)")  # in the legend
        wait_until(lambda: len(lines(returns)) == len(children), "a line for each child")
        pages.take(page, "mlflow-children")


def test_no_page_asks_anything_of_another_machine(stack: Stack, pages: Pages) -> None:
    for address, shown in (
        (f"{stack.prefect_url}/dashboard", "Flow Runs"),
        (f"{stack.prefect_url}/settings", "Theme"),
        (stack.mlflow_url, "Experiments"),
    ):
        with pages.open(address) as page:
            expect(page.get_by_text(shown).first).to_be_visible()
            page.wait_for_timeout(1000)
    assert any(url.startswith(f"{stack.api_url}/") for url in pages.asked)
    assert pages.outside() == []  # of these and all that the tests before have opened
