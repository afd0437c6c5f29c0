"""A Ray cluster played by the test, as far as the client of its jobs asks."""

from __future__ import annotations

from types import SimpleNamespace


class Cluster:
    """Answers as the job client does. Its log comes in `chunks`; None among them is a broken connection."""

    def __init__(self, chunks=(), status="SUCCEEDED", code=0, nodes=()):
        self.chunks, self.final, self.code, self.nodes = chunks, status, code, nodes
        self.status = "RUNNING"
        self.connections, self.stops, self.submitted = 0, 0, []

    async def tail_job_logs(self, job_id):
        self.connections += 1
        yield ""
        for number, chunk in enumerate(self.chunks):
            if chunk is None and self.connections <= 1 + list(self.chunks[:number]).count(None):
                raise RuntimeError("WebSocket connection closed unexpectedly")
            if chunk is not None:
                yield chunk
        self.status = self.final

    def get_job_logs(self, job_id):
        return "".join(chunk for chunk in self.chunks if chunk)

    def job(self):
        return {"status": self.status, "driver_exit_code": self.code, "message": "said Ray"}

    def stop_job(self, job_id):
        self.stops += 1
        if self.stops == 2:
            self.status = "STOPPED"

    def submit_job(self, **arguments):
        self.submitted.append(arguments)

    def _do_request(self, method, path):
        if path.endswith("unknown"):
            return SimpleNamespace(status_code=404, text="")
        if path.endswith("/logs"):
            return answer({"logs": self.get_job_logs("job")})
        if path.startswith("/api/jobs/"):
            return answer(self.job())
        summary = [{"raylet": {"state": s, "resourcesTotal": r}} for s, r in self.nodes]
        return answer({"data": {"summary": summary}})


def answer(body):
    return SimpleNamespace(status_code=200, json=lambda: body, text="")


class Ailing(Cluster):
    """Its dashboard answers some requests with a gateway's error: those whose number is in `ails`."""

    def __init__(self, *arguments, ails, **rest):
        super().__init__(*arguments, **rest)
        self.ails, self.asked = ails, 0

    def _do_request(self, method, path):
        self.asked += 1
        if self.asked in self.ails:
            return SimpleNamespace(status_code=503, text="no healthy upstream")
        return super()._do_request(method, path)
