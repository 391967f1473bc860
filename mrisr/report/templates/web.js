(() => {
  const drop = document.getElementById("drop"), file = document.getElementById("file"), jobs = document.getElementById("jobs");
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));

  function card(name) {
    const root = document.getElementById("job").content.cloneNode(true).firstElementChild;
    const part = (key) => root.querySelector(`[data-${key}]`);
    part("name").textContent = name;
    jobs.prepend(root);
    return {
      root, part,
      say(text, share) {
        part("said").textContent = text;
        const bar = root.querySelector("progress");
        if (share === null) bar.removeAttribute("value"); else bar.value = share;
      },
      fail(text) {
        part("said").textContent = text;
        part("said").classList.add("bad");
        root.querySelector("progress").hidden = true;
      },
    };
  }

  function send(chosen, shown) {
    return new Promise((done, failed) => {
      const request = new XMLHttpRequest();
      request.open("POST", "scans");
      request.setRequestHeader("Content-Type", "application/octet-stream");
      request.setRequestHeader("X-File-Name", encodeURIComponent(chosen.name));
      request.upload.onprogress = (event) => shown.say("uploading", event.loaded / Math.max(event.total, 1));
      request.onload = () => {
        let held = {};
        try { held = JSON.parse(request.responseText); } catch { held = { error: `answer ${request.status}` }; }
        if (request.status === 202) done(held); else failed(new Error(held.error || `answer ${request.status}`));
      };
      request.onerror = () => failed(new Error("the service broke off: the file is too large for it, or it has ended"));
      shown.part("remove").onclick = () => { request.abort(); shown.root.remove(); };
      request.send(chosen);
    });
  }

  async function follow(job, shown) {
    const where = `scans/${encodeURIComponent(job.id)}`;
    let gone = false;
    shown.part("remove").onclick = async () => { gone = true; shown.root.remove(); await fetch(where, { method: "DELETE" }); };
    while (!gone) {
      const answer = await fetch(where);
      const held = await answer.json();
      if (!answer.ok) throw new Error(held.error);
      if (held.state === "failed") throw new Error(held.error);
      if (held.state === "done") {
        shown.say("done", 1);
        for (const key of ["page", "result"]) { shown.part(key).href = held[key]; shown.part(key).hidden = false; }
        return;
      }
      shown.say(held.state === "waiting" ? "waiting for its turn" : held.stage, held.state === "waiting" ? null : held.fraction);
      await wait(400);
    }
  }

  async function take(chosen) {
    const shown = card(chosen.name);
    shown.part("remove").onclick = () => shown.root.remove();
    if (chosen.size > Number(drop.dataset.largest)) return shown.fail("too large for this service");
    try { await follow(await send(chosen, shown), shown); } catch (error) { shown.fail(error.message); }
  }

  file.addEventListener("change", () => { for (const one of file.files) take(one); file.value = ""; });
  for (const kind of ["dragover", "dragleave", "drop"])
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") for (const one of event.dataTransfer.files) take(one);
    });
})();
