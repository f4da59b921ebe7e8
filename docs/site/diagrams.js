// Draws the fenced blocks marked `mermaid`. Only pages that have one load the library. Without JavaScript a page
// shows the source of its diagrams.
(() => {
    const blocks = document.querySelectorAll("code.language-mermaid");
    if (blocks.length === 0) {
        return;
    }
    const draw = () => {
        for (const block of blocks) {
            const diagram = document.createElement("div");
            diagram.className = "mermaid";
            diagram.textContent = block.textContent;
            block.parentElement.replaceWith(diagram);
        }
        const dark = ["ayu", "coal", "navy"].some((theme) => document.documentElement.classList.contains(theme));
        mermaid.initialize({ startOnLoad: false, securityLevel: "strict", theme: dark ? "dark" : "neutral" });
        mermaid.run();
    };
    const library = document.createElement("script");
    library.src = `${path_to_root}docs/site/mermaid.min.js`;
    library.addEventListener("load", draw);
    document.head.append(library);
})();
