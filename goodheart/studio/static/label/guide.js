// The guidelines beside the task. They open by themselves when they are new to the reader.

import { $, setHtml, setup, say } from "./page.js";

export class Guide {
  constructor(api, storage, status) {
    Object.assign(this, { api, storage, status, id: null });
    this.root = $("#guidelines");
    this.key = `goodheart guidelines ${setup.person} ${setup.campaign}`;
  }

  async toggle(open = this.root.hidden) {
    this.root.hidden = !open;
    $("#toggle-guidelines").setAttribute("aria-expanded", String(open));
    document.body.classList.toggle("guided", open);
    if (open) await this.load();
  }

  async load() {
    if (this.wanted !== undefined && this.id === this.wanted) return;
    try {
      const found = await this.api.get(`/api/c/${setup.campaign}/guidelines`);
      this.id = found.id;
      $("#version").textContent = say("version", { version: found.version });
      setHtml($("article", this.root), found.html);
      this.storage.setItem(this.key, String(found.id));
    } catch (error) {
      $("article", this.root).textContent = error.message;
    }
  }

  // Each task says which version is in force.
  async inForce(id) {
    if (id === null || id === this.wanted) return;
    const known = this.storage.getItem(this.key);
    this.wanted = id;
    if (known === String(id)) {
      if (!this.root.hidden) await this.load();
      return;
    }
    if (known !== null) this.status.notice(say("guidelines_changed"), "guidelines");
    if (known !== null || matchMedia("(min-width: 70rem)").matches) await this.toggle(true);
  }
}
