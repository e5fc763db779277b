"""Submits a job when all sites are there, and waits for its end: KIT JOB N."""

import sys
import time

from nvflare.fuel.flare_api.flare_api import new_secure_session

kit, job, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
end = time.monotonic() + 180
while time.monotonic() < end:
    try:
        session = new_secure_session("admin@nvidia.com", kit)
        if len(session.get_system_info().client_info) >= n:
            break
        session.close()
    except Exception as error:  # noqa: BLE001 (whatever it says while the server starts)
        print("waiting:", error, flush=True)
    time.sleep(0.3)
else:
    sys.exit("the sites did not join")
print(session.monitor_job(session.submit_job(job), poll_interval=1.0))
session.close()
