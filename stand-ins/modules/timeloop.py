"""Stands in for timeloop, which has no wheel and whose every start prints to the server's standard output.

The part that MONAI Label uses: functions that are called again and again from a thread of their own.
"""

import threading


class Timeloop:
    def __init__(self):
        self._jobs = []
        self._stopped = threading.Event()

    def job(self, interval):
        def decorator(function):
            self._jobs.append((interval.total_seconds(), function))
            return function

        return decorator

    def start(self, block=False):
        threads = [threading.Thread(target=self._repeat, args=job, daemon=True) for job in self._jobs]
        for thread in threads:
            thread.start()
        if block:
            for thread in threads:
                thread.join()

    def stop(self):
        self._stopped.set()

    def _repeat(self, seconds, function):
        while not self._stopped.wait(seconds):
            function()
