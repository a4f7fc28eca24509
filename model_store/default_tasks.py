"""Tasks of a checkpoint that brings no definitions: what GPT-2 was asked in its paper.

`model_store/task.py` says what a task is.
"""

from model_store.task import Task


def default_tasks() -> dict[str, Task]:
    """Give the tasks of a checkpoint that has no manifest, worded as in the GPT-2 paper.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", sections 3.6 and 3.8.
    """
    tasks = (
        generate_task(),
        Task(
            name="summarize",
            kind="summarize",
            template="{text}\nTL;DR:",
            document="text",
            stop=("\n",),
            sampling={"max_new_tokens": 100, "temperature": 0, "no_repeat_ngram_size": 3},
            description="Summarize a text.",
        ),
        Task(
            name="qa",
            kind="qa",
            template="{context}\nQ: {question}\nA:",
            document="context",
            stop=("\n",),
            sampling={"max_new_tokens": 32, "temperature": 0},
            description="Answer a question about a text.",
        ),
    )
    return {task.name: task for task in tasks}


def generate_task() -> Task:
    """Give the task that every model has: it continues a prompt, drawn as the checkpoint likes."""
    return Task(
        name="generate",
        kind="generate",
        template="{prompt}",
        document="prompt",
        sampling={"max_new_tokens": 128},
        description="Continue a text.",
    )
