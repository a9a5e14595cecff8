"""Write every golden anew: python -m tests.golden."""

from .cases import all_cases

for case in all_cases():
    case.path.with_name("plan.txt").write_text(case.text())
    print(case.name)
