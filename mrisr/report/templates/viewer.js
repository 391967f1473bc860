(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const part = (name) => root.querySelector(`[data-${name}]`);
  const status = part("status");
  const script = (src) => new Promise((done, failed) => {
    const tag = document.createElement("script");
    tag.src = src;
    tag.onload = done;
    tag.onerror = () => failed(new Error(`${decodeURI(src)} is not beside this page: keep its folder of figures with it`));
    document.head.append(tag);
  });

  async function volume(name) {
    await script(root.dataset[name]);
    const found = await niivue.NVImage.loadFromBase64({
      base64: window.mrisrVolumes[name], name: `${name}.nii.gz`, colormap: "gray", cal_min: 0, cal_max: 255, trustCalMinMax: true,
    });
    delete window.mrisrVolumes[name];
    return found;
  }

  async function open() {
    part("load").disabled = true;
    status.textContent = "Loading …";
    if (!document.createElement("canvas").getContext("webgl2"))
      throw new Error("this browser has no WebGL 2, which the viewer needs; the pictures above need none");
    if (!window.niivue) await script(root.dataset.script);
    const volumes = [await volume("before"), await volume("after")];
    part("stage").hidden = false;
    const view = new niivue.Niivue({
      isRadiologicalConvention: true, backColor: [0, 0, 0, 1], crosshairColor: [0.35, 0.65, 1, 0.8], crosshairWidth: 0.6,
      show3Dcrosshair: true, multiplanarShowRender: niivue.SHOW_RENDER ? niivue.SHOW_RENDER.NEVER : 0, dragAndDropEnabled: false,
      loadingText: "", isOrientCube: false, logLevel: "error",
    });
    await view.attachToCanvas(root.querySelector("canvas"));
    volumes.forEach((v) => view.addVolume(v));
    view.setSliceType(view.sliceTypeMultiplanar);
    control(view);
    part("load").hidden = true;
    status.textContent = "";
    window.mrisrView = view;
  }

  function control(view) {
    const blend = part("blend"), flicker = part("flicker");
    const slices = [...root.querySelectorAll("[data-slices]")];
    let timer = 0;
    const set = (share) => { blend.value = share; view.setOpacity(1, Number(share)); };
    blend.addEventListener("input", () => set(blend.value));
    flicker.addEventListener("click", () => {
      const on = flicker.getAttribute("aria-pressed") !== "true";
      flicker.setAttribute("aria-pressed", String(on));
      clearInterval(timer);
      if (on) timer = setInterval(() => set(Number(blend.value) > 0.5 ? 0 : 1), 600);
    });
    slices.forEach((button) => button.addEventListener("click", () => {
      view.setSliceType(Number(button.dataset.slices));
      slices.forEach((b) => b.setAttribute("aria-pressed", String(b === button)));
    }));
  }

  part("load").addEventListener("click", () => open().catch((error) => {
    status.textContent = `The viewer cannot be opened: ${error.message}.`;
    part("load").disabled = false;
  }));
})();
