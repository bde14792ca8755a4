def stage_line(name, record, folder):
    return f"- {name}: {record['state']} {record['error'] or ''}"


def write_report(folder):
    (folder / "report.md").write_text("x")
