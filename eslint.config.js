import js from "@eslint/js";
import { defineConfig } from "eslint/config";
import globals from "globals";

export default defineConfig([
  { files: ["**/*.js"], plugins: { js }, extends: ["js/recommended"] },
  { files: ["clipcam_lightning/tensorboard_tab/static/**"], languageOptions: { globals: globals.browser } },
  { files: ["tests/tensorboard_tab/js/**"], languageOptions: { globals: globals.node } },
]);
