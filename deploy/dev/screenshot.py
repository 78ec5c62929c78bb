"""Takes pictures of the dashboard: screenshot.py BROWSER URL ORG FOLDER. Drives the browser over the pipes of its
DevTools protocol; needs nothing but Python."""

import base64
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
DESK, PHONE = (1280, 800), (390, 844)


class Browser:
    """A browser with one page."""

    def __init__(self, program, profile):
        there, self.to = os.pipe()
        self.back, back = os.pipe()

        def descriptors():
            os.dup2(os.dup2(there, 100), 3)
            os.dup2(os.dup2(back, 101), 4)

        command = [program, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=descriptors, close_fds=False
        )
        os.close(there)
        os.close(back)
        self.sent, self.buffer, self.session = 0, b"", None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def ask(self, method, **parameters):
        self.sent += 1
        command = {"id": self.sent, "method": method, "params": parameters}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.to, json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                piece = os.read(self.back, 1 << 20)
                if not piece:
                    sys.exit("the browser has ended")
                self.buffer += piece
            answer, self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(answer)
            if answer.get("id") == self.sent:
                if "error" in answer:
                    sys.exit(f"{method}: {answer['error']}")
                return answer["result"]

    def run(self, expression):
        told = self.ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            sys.exit(f"{expression}: {told}")
        return told["result"].get("value")

    def until(self, expression, seconds=60):
        deadline = time.monotonic() + seconds
        while not self.run(expression):
            if time.monotonic() > deadline:
                sys.exit(f"not within {seconds} s: {expression}")
            time.sleep(0.05)

    def look(self, size, scheme, scale=1):
        width, height = size
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=size == PHONE)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        time.sleep(0.5)

    def picture(self, path, whole=True):
        shot = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        print(path)


def main():
    program, url, org, folder = sys.argv[1:]
    folder = pathlib.Path(folder)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            browser.look(DESK, "light")
            browser.ask("Page.navigate", url=url)
            browser.until("document.querySelectorAll('#rows tr').length > 0")
            # Something on the charts.
            browser.until("document.querySelector('.stroke.one')?.getAttribute('d')?.split('L').length > 14", 120)
            press = f"[...document.querySelectorAll('#rows tr')].find(row => row.org === {json.dumps(org)})"
            browser.run(f"{press}.querySelector('[data-action=refresh]').click()")
            browser.until("document.querySelector('#ended li') !== null")
            browser.run("document.getElementById('ended-box').open = true")
            others = "[...document.querySelectorAll('#rows tr')].find(row => row.querySelector('[data-action=delete]').disabled)"
            browser.run(f"{others}?.querySelector('[data-action=refresh]').click()")
            for name, size, scheme in [
                ("light", DESK, "light"), ("dark", DESK, "dark"), ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark"),
            ]:
                browser.look(size, scheme, 2 if size == PHONE else 1)
                browser.picture(folder / f"{name}.png")
            for name, size, scheme in [("inspect", DESK, "light"), ("inspect-phone", PHONE, "dark")]:
                browser.look(size, scheme, 2 if size == PHONE else 1)
                browser.run(f"{press}.querySelector('[data-action=inspect]').click()")
                browser.until("!document.getElementById('inspect-content').hidden")
                browser.run("document.getElementById('groups-box').open = true")
                browser.until("document.querySelectorAll('#groups tr').length > 0")
                browser.picture(folder / f"{name}.png", whole=False)
                browser.run("document.getElementById('inspect').close()")
            browser.look(DESK, "dark")
            browser.run(f"{press}.querySelector('[data-action=delete]').click()")
            browser.picture(folder / "delete.png", whole=False)
        finally:
            browser.process.terminate()
            browser.process.wait()


if __name__ == "__main__":
    main()
