"""From particles to photon counts with a trained flow."""
