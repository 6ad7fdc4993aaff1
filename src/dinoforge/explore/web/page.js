"use strict";
// All pages work without this: it draws boxes with a pointer, shows how far a computation is, and shows points on the map.

// A box over an image: drawn with a mouse, a pen or a finger, then searched for.
for (const picture of document.querySelectorAll("svg.draw")) {
  const box = picture.querySelector("rect.box");
  const form = document.querySelector("form.box");
  const [, , width, height] = picture.getAttribute("viewBox").split(" ").map(Number);
  for (const part of document.querySelectorAll(".scripted")) part.hidden = false;
  let from = null;

  const place = (event) => {
    const frame = picture.getBoundingClientRect();
    const scale = Math.min(frame.width / width, frame.height / height);
    const inside = (value, size, start, span) => Math.min(1, Math.max(0, (value - start - (span - size * scale) / 2) / (size * scale)));
    return [inside(event.clientX, width, frame.left, frame.width), inside(event.clientY, height, frame.top, frame.height)];
  };
  const show = (to) => {
    const edges = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
    box.setAttribute("x", edges[0] * width);
    box.setAttribute("y", edges[1] * height);
    box.setAttribute("width", (edges[2] - edges[0]) * width);
    box.setAttribute("height", (edges[3] - edges[1]) * height);
    ["left", "top", "right", "bottom"].forEach((name, at) => { form.elements[name].value = edges[at].toFixed(4); });
    return edges;
  };
  picture.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    picture.setPointerCapture(event.pointerId);
    from = place(event);
  });
  picture.addEventListener("pointermove", (event) => { if (from) show(place(event)); });
  picture.addEventListener("pointercancel", () => { from = null; });
  picture.addEventListener("pointerup", (event) => {
    if (!from) return;
    const edges = show(place(event));
    from = null;
    if (edges[2] - edges[0] > 0.01 && edges[3] - edges[1] > 0.01) form.requestSubmit();
  });
}

// What is being computed: how far, and the answer as soon as it is there.
for (const part of document.querySelectorAll(".computing")) {
  const clock = (seconds) => {
    const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
    if (minutes >= 60) return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
    return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
  };
  const look = async () => {
    try {
      const answer = await fetch("/api/progress");
      const job = (await answer.json()).jobs.find((one) => one.what === part.dataset.what);
      if (!job || job.state === "done" || job.state === "failed") return location.reload();
      const bar = part.querySelector("progress");
      if (job.total) { bar.max = job.total; bar.value = job.done; } else { bar.removeAttribute("value"); }
      if (job.now) part.querySelector(".now").textContent = job.now;
      const count = job.total ? `${job.done.toLocaleString("en")} of ${job.total.toLocaleString("en")}, ` : "";
      const left = job.left === null ? "" : `, about ${clock(job.left)} left`;
      part.querySelector(".count").textContent = `${count}${clock(job.seconds)} so far${left}.`;
    } catch { /* the server is gone for now; ask again */ }
    setTimeout(look, 1000);
  };
  setTimeout(look, 1000);
}

// A point on the map shows its image.
for (const plane of document.querySelectorAll(".plane")) {
  const peek = plane.querySelector(".peek");
  plane.addEventListener("pointerover", (event) => {
    const point = event.target.closest("a[data-row]");
    peek.hidden = !point;
    if (!point) return;
    peek.querySelector("img").src = `/picture/row/${point.dataset.row}`;
    peek.querySelector("span").textContent = point.getAttribute("aria-label");
  });
}

// A file that is too large is told before it is sent.
for (const input of document.querySelectorAll("input[type=file]")) {
  input.addEventListener("change", () => {
    const most = Number(input.dataset.most);
    const tooLarge = input.files.length && input.files[0].size > most - 4096;
    input.setCustomValidity(tooLarge ? `At most ${Math.floor(most / 2 ** 20)} MiB.` : "");
    input.reportValidity();
  });
}
